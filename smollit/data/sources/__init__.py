"""Where rows come from: files, readers, data sets, mixtures."""
