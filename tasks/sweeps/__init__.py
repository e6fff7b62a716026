"""What beat starts: dispatch, reconcile, orphans, retention."""
