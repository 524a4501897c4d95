"""Rollout: the feeder and the Celery worker; one problem in, one scored trajectory group out."""
