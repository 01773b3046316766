"""Files for container clients (dockerd, containerd, podman, Kubernetes), and a test pull by each.

Here live the texts of these files and the programs of the clients.
Not here: copies, plans and the state.
"""
