"""Layers with a read-out: as folders, on the hub, symbol by symbol."""
