"""The translation server: LibreTranslate's format over HTTP, additions of its own, and a page."""
