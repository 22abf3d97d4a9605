"""Jobs on a cluster: submit, pre-flight, survive, watch. No torch at import: a login node need not have one."""
