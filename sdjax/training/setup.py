"""A run as a value: config, data, devices, phases and model, before anything is written."""

import copy
import dataclasses
from pathlib import Path

import jax
import numpy as np
from absl import logging
from flax import nnx

from sdjax import config as config_lib
from sdjax import data as data_lib
from sdjax import label_sets
from sdjax.config import VALIDATION_METRICS, Config, DataConfig
from sdjax.errors import InputError
from sdjax.models import registry
from sdjax.models.model import LabelWeights
from sdjax.training import momentum_queue, predictor, supervised
from sdjax.training import workdir as workdir_lib
from sdjax.training.checkpoint import ForeignCheckpointError, Position
from sdjax.training.evaluate import make_losses
from sdjax.training.mesh import Mesh, batch_sharding, check_batch_size, make_mesh
from sdjax.training.processes import check_equal, failing_together, is_main
from sdjax.training.recipes import Phase, make_phases, phase_of_step, with_enough_epochs
from sdjax.training.state import (
    ExampleSpec,
    TrainState,
    Weights,
    abstract,
    initializer,
    make_model,
    model_graph,
    program_config,
)
from sdjax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """A training run, ready to start.

    Attributes:
      config: with all sizes.
      dataset: its three splits; without rows for validation none is made.
      mesh: of all devices.
      spec: of one example.
      phases: of the recipe.
      graph: structure of the model of one member.
      initial: weights that parts of the model start from, or None.
      refit: where the train split holds the validation split too, the file of the validation scores
        [N, C] of the run before, by which thresholds are tuned; None elsewhere.
    """

    config: Config
    dataset: data_lib.Dataset
    mesh: Mesh
    spec: ExampleSpec
    phases: tuple[Phase, ...]
    graph: nnx.GraphDef
    initial: Weights | None = None
    refit: Path | None = None

    @property
    def validates(self) -> bool:
        """Whether there is a validation split that the model is not trained on."""
        return self.refit is None and len(self.dataset.validation) > 0

    @property
    def steps_per_epoch(self) -> int:
        return _steps_per_epoch(self.config, self.dataset)

    @property
    def examples_per_step(self) -> float:
        """Mean number of examples of a step, padding left out."""
        if self.config.drop_remainder:
            return self.config.batch_size
        return len(self.dataset.train) / self.steps_per_epoch

    @property
    def program(self) -> Config:
        """The config as far as compiled programs depend on it; the same for any seed."""
        return program_config(self.config)

    def with_seed(self, seed: int) -> "Setup":
        """The same run with another seed: its data and its compiled programs are shared."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, seed=seed))

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        make = initializer(self.config, self.spec, self.phases[0], self.mesh)
        return make(jax.random.key(self.config.seed), self.initial)

    def abstract_state(self, position: Position) -> TrainState:
        """Shapes, dtypes and shardings of the state at `position`.

        Raises:
          ForeignCheckpointError: if the data does not stand there after as many steps.
        """
        step = min(int(position["step"]), self.phases[-1].stop)
        if position != self.position(step):
            raise ForeignCheckpointError(
                f"A checkpoint stands at {position} in the data, this run would stand at "
                f"{self.position(step)}: the data of the run have changed."
            )
        phase = phase_of_step(self.phases, step)
        return abstract(self.config, self.spec, phase, self.mesh)

    def position(self, step: int) -> Position:
        """Where the data stands after `step` steps, in numbers that any number of devices reads."""
        phase = phase_of_step(self.phases, step)
        return {
            "step": step,
            "phase": phase.name,
            "seed": self.data_seed(phase),
            "next_batch": step - phase.start,
            "batch_size": self.config.batch_size,
            "num_examples": len(self.dataset.train),
        }

    def data_seed(self, phase: Phase) -> int:
        """Each phase sees its own order of the data."""
        return self.config.seed * len(self.phases) + self.phases.index(phase)


def make_setup(
    config: Config, *, dataset: data_lib.Dataset | None = None, mesh: Mesh | None = None
) -> Setup:
    """Checks `config`, reads the data, and traces every step; writes nothing.

    Args:
      config: of the run; it is not kept.
      dataset: in place of the one that `config.data` names.
      mesh: in place of the one that `config.mesh` makes of all devices.

    Raises:
      InputError: if config, data and devices do not fit together.
      OSError: if a file cannot be read.
    """
    config = copy.deepcopy(config)
    config_lib.check(config)
    if (unused := config_lib.unused(config)) and is_main():
        logging.warning("Recipe %r has no use for %s.", config.recipe, ", ".join(unused))
    if config.refit and config.data.examples_per_label:
        # Validation is not thinned out.
        if is_main():
            logging.warning("No refit on train and validation: data.examples_per_label is given.")
        config = dataclasses.replace(config, refit=False)
    config = with_published_sizes(config)
    dataset = dataset or _load_data(config)
    config = _with_pixels(config, dataset)
    mesh = mesh or make_mesh(config.mesh)
    train = dataset.train
    config = config_lib.sized(config, len(train), dataset.input_spec, mesh.size)
    sizes = {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")}
    check_equal({**config_lib.flat(config), **sizes, "labels": dataset.num_classes})
    check_batch_size(config.batch_size, len(train), config.least_microbatches, mesh)
    config = with_enough_epochs(config, _steps_per_epoch(config, dataset))
    momentum_queue.check(config)
    single = config.loss.name == "supcon" and config.loss.rows == "examples"
    if single and config.recipe != "bce":
        for split, source in (("train", train), ("validation", dataset.validation)):
            _check_single_label(split, source.labels)
    labelled = label_sets.counts(dataset.validation.labels).any()
    if config.select_by in VALIDATION_METRICS and not labelled:
        raise InputError(
            f"select_by={config.select_by!r} needs a label in the validation split, which has none."
        )
    spec = ExampleSpec.of_source(train)
    setup = Setup(
        config=config,
        dataset=dataset,
        mesh=mesh,
        spec=spec,
        phases=make_phases(config, _steps_per_epoch(config, dataset)),
        graph=model_graph(config, spec),
        initial=_initial_weights(config, dataset, spec),
    )
    _trace(setup)
    return setup


def with_published_sizes(config: Config) -> Config:
    """`config` with what its pretrained weights tell of the network and of its inputs.

    That is the tokenizer of texts, and size, mean and standard deviation of images.

    A run that starts from another takes both from there.
    """
    model, data = config.model, config.data
    if data.text and model.encoder == "auto":
        model = dataclasses.replace(model, encoder="bert")
    source = model.weights
    if model.init_from and not model.weights:
        workdir_lib.check_is_run(Path(model.init_from))
        started = workdir_lib.read_config(Path(model.init_from))
        source = started.data.tokenizer
        data = _with_image_inputs(data, started.data)
        architecture = model.architecture or started.model.architecture
        model = dataclasses.replace(model, architecture=architecture)
    model = registry.with_architecture(model)
    if data.text:
        data = dataclasses.replace(data, tokenizer=data.tokenizer or source)
        most = registry.max_length(model)
        if most and data.max_length > most:
            raise InputError(
                f"data.max_length must be at most the model's {most}, got {data.max_length}."
            )
        data = dataclasses.replace(data, max_length=data.max_length or most)
    elif model.weights and (read := registry.image_inputs_reader(model)) is not None:
        wanted = read(model.weights)
        found = DataConfig(
            image_size=wanted.resizing.size, image_mean=wanted.mean, image_std=wanted.std
        )
        data = _with_image_inputs(data, found)
    return dataclasses.replace(config, model=model, data=data)


def _with_image_inputs(data: DataConfig, found: DataConfig) -> DataConfig:
    """`data` with what `found` tells of images, where it leaves that open."""
    names = ("image_size", "image_mean", "image_std")
    values = {name: getattr(data, name) or getattr(found, name) for name in names}
    return dataclasses.replace(data, **values)


def _with_pixels(config: Config, dataset: data_lib.Dataset) -> Config:
    """`config` with what is black and what is white, where views change the colours of images."""
    augment, preprocess = config.augment, dataset.preprocess
    if not augment.changes_colours or augment.pixel_mean:
        return config
    if not isinstance(preprocess, data_lib.Preprocess) or preprocess.kind != "image":
        return config
    augment = dataclasses.replace(augment, pixel_mean=preprocess.mean, pixel_std=preprocess.std)
    return dataclasses.replace(config, augment=augment)


def _load_data(config: Config) -> data_lib.Dataset:
    """The data set; process 0 first: what it prepares on a shared disk is ready for the others."""
    loaded = []
    for turn in (True, False):
        with failing_together():
            if is_main() == turn:
                loaded.append(data_lib.load(config.data))
    return loaded[0]


def _steps_per_epoch(config: Config, dataset: data_lib.Dataset) -> int:
    return data_lib.steps_per_epoch(len(dataset.train), config.batch_size, config.drop_remainder)


def _check_single_label(split: str, labels: label_sets.LabelSets) -> None:
    sizes = label_sets.sizes(labels)
    if (sizes != 1).any():
        row = int(np.argmax(sizes != 1))
        raise InputError(
            f"loss 'supcon' needs exactly one label an example, got {int(sizes[row])} in row {row} "
            f"of the {split} split; 'any' and 'all' are its multi-label forms."
        )


def _initial_weights(
    config: Config, dataset: data_lib.Dataset, spec: ExampleSpec
) -> Weights | None:
    """What the data and `model.init_from` or `model.weights` give, for all members."""
    if config.model.init_from and config.model.weights:
        raise InputError("model.init_from and model.weights exclude each other; both are given.")
    initial = None
    if config.model.init_from:
        initial = predictor.initial_weights(config, spec, dataset.label_names)
    elif config.model.weights:
        model = make_model(config, spec, jax.random.key(config.seed))
        registry.load_weights(config.model, model.encoder)
        _, *states = nnx.split(model, nnx.Param, ...)
        parts = [nnx.filter_state(state, lambda path, _: path[0] == "encoder") for state in states]
        members = config.model.members
        initial = Weights(*jax.tree.map(lambda x: np.stack([x] * members), parts))
    weighted = supervised.needs_counts(config.supervised)
    biased = config.model.prior_bias and not config.model.init_from
    if not (weighted or biased):
        return initial
    params, variables = initial or Weights(nnx.State({}), nnx.State({}))
    labels = dataset.train.labels
    counts, rows = label_sets.counts(labels), label_sets.num_rows(labels)
    if weighted:
        variables = nnx.merge_state(variables, _label_weights(config, counts, rows))
    if biased:
        params = nnx.merge_state(params, _prior_bias(config, counts, rows))
    return Weights(params, variables)


def _prior_bias(config: Config, counts: np.ndarray, rows: int) -> nnx.State:
    """The classifier's bias, for all members: log((n + ½) / (N − n + ½)) of n of N examples."""
    bias = np.log((counts + 0.5) / (rows - counts + 0.5)).astype(np.float32)
    return nnx.State({"classifier": {"bias": nnx.Param(np.stack([bias] * config.model.members))}})


def _label_weights(config: Config, counts: np.ndarray, rows: int) -> nnx.State:
    """Those of the supervised loss, for all members."""
    values = supervised.label_weights(counts, rows, config.supervised)
    state = nnx.state(LabelWeights(len(counts)))
    members = np.stack([values] * config.model.members)
    return nnx.State({"label_weights": jax.tree.map(lambda _: members, state)})


def _trace(setup: Setup) -> None:
    """Traces the programs of every phase, so that what cannot run fails before it is begun."""
    batch = setup.spec.batch(setup.config.batch_size, batch_sharding(setup.mesh))
    for phase in setup.phases:
        state = abstract(setup.config, setup.spec, phase, setup.mesh)
        common = (setup.program, phase, setup.graph, setup.mesh)
        jax.eval_shape(make_train_step(*common), state, batch)
        jax.eval_shape(make_losses(*common), state.best, state.aux, batch)
