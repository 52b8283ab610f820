"""The machine: devices, memory, processes, files, the terminal, and the network."""
