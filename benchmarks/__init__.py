"""Side by side with the peers on equal work; prints ratios. `python -m benchmarks` runs all, `python -m benchmarks.sft` one."""
