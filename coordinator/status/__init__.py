"""The one-screen summary of a vault: sites, VMs by health, jobs, and what is wrong, worst first."""
