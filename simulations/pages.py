"""Pages that need no network and no other file: templates beside this module, in the style of `client.pages`."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Return the page: values are escaped, and a missing one is an error."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("simulations", "."), PackageLoader("client", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _number
    return environment.get_template(template).render(values)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:z.{digits}f}"
