"""Drop-in replacements for classes of other libraries; each module bears the library's name."""
