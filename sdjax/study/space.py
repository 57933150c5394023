"""What tuning searches: fields with their ranges or choices."""

from dataclasses import dataclass
from typing import Any

from sdjax import config as config_lib
from sdjax.config import Config
from sdjax.errors import InputError

# Around the values of the config, where the user names no space: factors of it, or a range.
_AROUND = {"supervise.learning_rate": 5.0, "pretrain.learning_rate": 5.0, "contrastive_weight": 10}
_FIXED = {"loss.temperature": (0.03, 1.0, True), "model.dropout": (0.0, 0.6, False)}


@dataclass(frozen=True)
class Parameter:
    """A field that is tuned.

    Attributes:
      name: of the field.
      low, high: of a range.
      log: whether the range is searched by its logarithm.
      values: that are chosen among, in place of a range.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    values: tuple[str, ...] = ()

    def checked(self, config: Config) -> "Parameter":
        """The same, once it is seen to fit the fields of `config`.

        Raises:
          InputError: if there is no such field, or it may not have such values.
        """
        ends = self.values or (self._text(config, self.low), self._text(config, self.high))
        for value in ends:
            changed = config_lib.overridden(config, f"{self.name}={value}", "space")
            config_lib.check(changed)
        return self

    def place(self, value: Any) -> Any:
        """`value` of the field as the space has it; None where it lies outside."""
        if self.values:
            return str(value) if str(value) in self.values else None
        return value if self.low <= value <= self.high else None

    def whole(self, config: Config) -> bool:
        """Whether the field holds whole numbers."""
        return isinstance(config_lib.flat(config).get(self.name), int)

    def _text(self, config: Config, value: float) -> Any:
        return int(value) if self.whole(config) and value == int(value) else value


def parse(text: str) -> Parameter:
    """The parameter of "loss.temperature=.03..1:log" or "model.width=128,256,512".

    Raises:
      InputError: if `text` is of another form.
    """
    name, equals, rest = text.partition("=")
    wrong = InputError(
        f"A space must be FIELD=LOW..HIGH, FIELD=LOW..HIGH:log or FIELD=VALUE,VALUE,..., got "
        f"{text!r}."
    )
    if not (name and equals and rest):
        raise wrong
    if ".." not in rest:
        return Parameter(name, values=tuple(rest.split(",")))
    ends, _, scale = rest.partition(":")
    try:
        low, high = (float(end) for end in ends.split(".."))
    except ValueError:
        raise wrong from None
    log = scale == "log"
    if scale not in ("", "log") or not low < high or (log and low <= 0):
        raise wrong
    return Parameter(name, low, high, log)


def default(config: Config) -> tuple[Parameter, ...]:
    """Learning rate, dropout, and what the contrastive loss has: temperature and weight."""
    values = config_lib.flat(config)
    around = [
        Parameter(name, values[name] / factor, values[name] * factor, log=True)
        for name, factor in _AROUND.items()
        if values[name] > 0
    ]
    return (*around, *(Parameter(name, *each) for name, each in _FIXED.items()))
