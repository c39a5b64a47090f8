"""The package on arm64, emulated instruction by instruction on an x86-64 machine: same files, same answers."""
