"""Sampling runs as self-contained HTML pages and GIFs; needs numpy and Pillow only."""

from .chart import curve
from .page import Report
from .pictures import gif, image_grid
from .playback import player
from .trace import Trace, record, watch
from .views import GridView, ImageView, TextView

__all__ = [
    "GridView",
    "ImageView",
    "Report",
    "TextView",
    "Trace",
    "curve",
    "gif",
    "image_grid",
    "player",
    "record",
    "watch",
]
