"""What a selector raises."""


class NoAvailableInstance(LookupError):
    """There is no instance that the request could go to.

    Parameters
    ----------
    message : str
        For people.

    Attributes
    ----------
    code : int
        503, the HTTP status to answer with, as in Kratos.
    reason : str
        "no_available_node", as in Kratos.
    """

    code = 503
    reason = "no_available_node"

    def __init__(self, message: str = "no instance is available") -> None:
        super().__init__(message)
