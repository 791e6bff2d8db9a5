"""What replication cost and how late it was, as time series; and why a VM is late."""
