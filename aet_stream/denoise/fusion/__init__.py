"""The fusion of experts: what the network, the vacuum and the lattice each say of the background under a particle becomes one answer."""
