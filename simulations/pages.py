"""Pages that need no network and no other file, from the templates beside this module."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Return the page: values are escaped, and a missing one is an error."""
    environment = Environment(
        loader=PackageLoader("simulations", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _number
    return environment.get_template(template).render(values)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:z.{digits}f}"
