"""Reports: what can honestly be concluded from run folders. Never imports torch."""
