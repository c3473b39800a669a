"""Options that several verbs have, in the same words."""

from typing import Annotated

import typer

TopK = Annotated[int, typer.Option(help="only the k likeliest tokens; 0: all")]
Int8 = Annotated[bool, typer.Option("--int8", help="keep the weights in 8 bits")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, ...; left out: as stored", show_default=False)]
# Of models that write by filling in masks
Steps = Annotated[int, typer.Option(help="of a model that fills in masks: so many in all; 0: one for each token")]
Block = Annotated[int, typer.Option(help="of such a model: so many tokens are finished before the next ones are begun")]
Remasking = Annotated[str, typer.Option(help="of such a model: low_confidence or random")]
