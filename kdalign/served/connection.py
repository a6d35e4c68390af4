"""Connection to a model behind an API: its name, its server, and the requests that are paid for."""

from typing import Self

from kdalign.errors import UsageError
from kdalign.recipe.task_defaults import SERVED_PREFIX
from kdalign.served.budget import ServedSettings, Usage, check_settings
from kdalign.served.cache import KeptAnswers
from kdalign.served.request_queue import RequestQueue
from kdalign.served.transport import Server


def is_served(name: str) -> bool:
    """Return whether a model's name is ``openai:NAME``."""
    return name.startswith(SERVED_PREFIX)


def served_name(name: str) -> str:
    """Return a model's name at its server.

    Raises:
        UsageError: it is not ``openai:NAME``.
    """
    if not is_served(name) or name == SERVED_PREFIX:
        raise UsageError(f"model {name!r} is not one behind an API (accepted: openai:NAME)")
    return name.removeprefix(SERVED_PREFIX)


class Connection:
    """A model at a URL. Close it, or use it in ``with``; opening it sends nothing.

    Attributes:
        model: the model's name at the server.
        url: URL of the API.
    """

    def __init__(self, name: str, base_url: str, cache: KeptAnswers, settings: ServedSettings) -> None:
        """Open a model.

        Raises:
            UsageError: OpenAI's package is not installed, or the name, URL, key or a setting is invalid.
        """
        check_settings(settings)
        self.model = served_name(name)
        self._server = Server(base_url, settings)
        self._requests = RequestQueue(self.model, self._server, cache, settings)
        self.url = self._server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a request under way still keeps its answer, and a later one opens new ones."""
        self._server.close()

    @property
    def spent(self) -> Usage:
        """Requests and tokens paid for since the model was opened."""
        return self._requests.budget.spent
