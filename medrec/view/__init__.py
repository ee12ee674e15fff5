"""Local web page over runs, molecules and recommendations: `medrec view`.

Research use only, not for clinical decisions. The server listens on the loopback address alone.
"""
