"""``python -m orchestration``: the same program as ``medrec``, also for Ray jobs."""

from orchestration.cli import main

if __name__ == "__main__":
    main()
