"""Programs that make committed files, each kept equal to its product by a test. The service never imports them."""
