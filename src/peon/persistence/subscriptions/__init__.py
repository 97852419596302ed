"""Subscriptions: replay stored events, then follow new ones."""
