"""File formats the store reads and writes: qcow2 layers, their zstd frames, the fingerprint side files."""
