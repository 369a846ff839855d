"""Pages that need no network, no script and no other file, from the templates beside this module."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Return the page: values are escaped, and a missing one is an error."""
    environment = Environment(
        loader=PackageLoader("client", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = _share
    environment.filters["number"] = _number
    return environment.get_template(template).render(values)


def _share(value: float) -> str:
    return f"{value:.1%}"


def _number(value: int) -> str:
    return f"{value:,}"
