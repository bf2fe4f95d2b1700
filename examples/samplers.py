"""Named samplers side by side on the exact toy: network calls against the distance to the true law.

python -m examples.samplers
"""

import discdiff as dd
from discdiff.testing import noise_floor, total_variation, toy

DRAWS = 10_000
RUNS = {
    "ancestral": {},
    "entropy": {},
    "remdm_cap": {"eta": 0.1},
    "gibbs": {"start": 1.0},
    "maskgit": {"noise": 0.0},
    "fast_dllm": {"tau": 0.5, "temperature": 1.0},
}


def main():
    joint = toy()
    denoiser, floor = joint.denoiser(dd.Absorbing()), noise_floor(joint.p, DRAWS)
    print(f"{'sampler':>12} {'law':>12}   calls: distance to the law, 1 = the noise of {DRAWS} exact draws")
    for name, knobs in RUNS.items():
        line = f"{name:>12} {dd.PRESETS[name].law:>12}"
        for steps in (2, 4, 16):
            state, info = dd.sampler(name, steps=steps, **knobs)(denoiser, joint.batch(DRAWS), seed=0)
            line += f"   {info.nfe:2}: {total_variation(joint.law(state.tokens), joint.p) / floor:5.1f}"
        print(line)


if __name__ == "__main__":
    main()
