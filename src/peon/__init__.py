"""Persistence for applications that run coding agents: an append-only event log that restarts cannot lose."""

__version__ = "0.1.0"
