"""Which device holds what: meshes and parameter sharding."""
