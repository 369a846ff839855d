"""Options that several commands of ``collegium-client`` have, so that each is called and explained the same."""

from pathlib import Path
from typing import Annotated

import typer

SITE_FILE, NETWORK_FILE = Path("site.toml"), Path("network.toml")

ConfigOption = Annotated[Path, typer.Option("--config", help="The site's file.", dir_okay=False)]
EitherConfigOption = Annotated[
    Path, typer.Option("--config", help="The site's file, or the network user's.", dir_okay=False)
]
NetworkConfigOption = Annotated[
    Path, typer.Option("--config", help="The network user's file.", dir_okay=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
EndWithParentOption = Annotated[
    bool, typer.Option("--end-with-parent", hidden=True, help="End when standard input is closed.")
]
