"""Does `keep="auto"` keep its promise? The guarantee over random splits of real answers."""
