"""What runtimes and processors can do, as tables with their sources; imports nothing else of the backends."""
