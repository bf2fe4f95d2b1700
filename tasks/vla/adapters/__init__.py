"""A trained policy behind the interfaces that others call: LeRobot's, openpi's, and the observations of simulators."""

from tasks.vla.adapters.lerobot_policy import LeRobotConfig, LeRobotPolicy
from tasks.vla.adapters.openpi import OpenPiPolicy

__all__ = ["LeRobotConfig", "LeRobotPolicy", "OpenPiPolicy"]
