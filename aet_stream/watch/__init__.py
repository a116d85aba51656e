"""watch: notices files, waits until they are complete, reads them when the hub asks. It keeps no outcome."""
