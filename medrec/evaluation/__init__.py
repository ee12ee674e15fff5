"""Per-visit rows and everything computed from them: means, intervals, comparisons."""
