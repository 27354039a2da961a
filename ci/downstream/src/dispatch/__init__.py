"""A service that dispatches requests from C, without the GIL, to instances that rota picks."""
