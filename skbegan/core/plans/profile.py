"""Stage 3, profile alignment: the rest of the batch is removed from features and images of the finished generator.

During training, losses that compare batches use features of generators some steps apart, in which a batch difference
that changes from step to step averages out. With the finished generator all cells can be compared together:

- a :class:`~skbegan.core.outputs.ProfileMap` makes the profile from the features. It keeps the directions in which
  they vary enough and moves cells, by a small network, until the batches of each cell type have one distribution;
- an :class:`~skbegan.core.outputs.ImageErasure` erases from the predicted images what separates the batches of a type
  linearly.

Both see one cell at a time and neither its batch nor its type, so they serve cells of any day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from skbegan._progress import Progress
from skbegan.config import Config, ProfileAlignment
from skbegan.core.descriptors import Descriptors, signs_of
from skbegan.core.engine import Engine, Event
from skbegan.core.erasure import fit_erasure
from skbegan.core.losses import (
    MIN_CELLS,
    History,
    Losses,
    Members,
    cross_entropy,
    group_members,
    maximum_mean_discrepancy,
    positive,
    weighted_sum,
)
from skbegan.core.networks import (
    Generator,
    Weights,
    generator_of,
    new_network,
    to_numpy,
    without_outputs,
)
from skbegan.core.outputs import ProfileMap
from skbegan.core.plans.pretraining import Start
from skbegan.data.cells import Cells, Minibatch, symmetry
from skbegan.data.sampler import n_minibatches
from skbegan.data.source import Landing, send
from skbegan.design import Design

CELLS_PER_STEP = 2048
DEAD = 1e-3  # of the spread of the most variable feature
# Cells that profile and erasure are fitted on, and values of all their images: at most so many.
FEATURE_CELLS, IMAGE_CELLS, IMAGE_VALUES = 8192, 4096, 2**25
N_PARTS = 10  # of the history
N_SIGNED = 1024  # cells that the signs of descriptors are read from


class ProfileFit:
    """The fit of one profile map, on the features of the training cells.

    Minimised is the maximum mean discrepancy between the batches of each cell type, with the cross-entropy of a linear
    classifier of the cell type, and a penalty on the corrections.

    Parameters
    ----------
    config : ProfileAlignment
    weights : mapping of str to float
        Of ``"matching"``, ``"correction"`` and ``"cell_type"``; those of 0 cost nothing.
    profile : ProfileMap
        Not corrected yet; trained in place.
    views : Tensor of shape (n_views, n, n_features)
        Features of the same cells seen in different orientations.
    batch, cell_type : Tensor of int, shape (n,)
    engine : Engine
    rng : torch.Generator
        CPU generator.
    """

    def __init__(
        self,
        config: ProfileAlignment,
        weights: dict[str, float],
        profile: ProfileMap,
        views: Tensor,
        batch: Tensor,
        cell_type: Tensor,
        engine: Engine,
        rng: torch.Generator,
    ) -> None:
        self.config, self.profile, self.engine, self.rng = config, profile, engine, rng
        self.cell_type = cell_type
        self.on_host = batch.cpu(), cell_type.cpu()
        self.members = group_members(*self.on_host, views.device)
        nn.init.zeros_(profile.correction[-1].weight)  # type: ignore[arg-type]
        profile.to(views.device)
        self.codes = (views - profile.centre) @ profile.read
        n_types = max(1, int(cell_type.max()) + 1)
        self.partial = bool((cell_type < 0).any())
        self.weights = positive(weights if n_types > 1 else weights | {"cell_type": 0.0})
        self.classifier = new_network(nn.Linear, self.codes.shape[2], n_types, rng=rng).to(views.device)
        parameters = [*profile.correction.parameters(), *self.classifier.parameters()]
        engine.optimize("profile", parameters, config.learning_rate)
        self._landing = Landing()
        self._strata: list[tuple[Tensor, int]] = []  # positions of cells, and how many of them a step draws
        if views.device.type == "cuda" and len(batch) > CELLS_PER_STEP:
            self.stratify()

    def stratify(self) -> None:
        """Let each step draw the same numbers of cells, from each batch of each type its share, and not whichever.

        On a card the sizes of all groups are then those of the step before; the smallest ones are always compared.
        """
        batch, cell_type = self.on_host
        codes = cell_type * (int(batch.max()) + 1) + batch
        for code in sorted(set(codes.tolist())):
            group = torch.nonzero(codes == code).flatten()
            share = round(CELLS_PER_STEP * len(group) / len(codes))
            self._strata.append((group, min(len(group), max(share, MIN_CELLS))))
        first = torch.cat([group[:size] for group, size in self._strata])
        self.members = group_members(batch[first], cell_type[first], self.codes.device)

    def step(self, progress: float) -> Losses:
        """One step: draw cells and an orientation of each, correct their codes, compare the batches of each type."""
        rate = self.config.learning_rate * min(1.0, 2.0 * (1.0 - progress))
        self.engine.optimizers["profile"].learning_rate = rate
        members, types, code, kept = self._drawn(1.0 - self.config.weight_decay * rate)
        corrected = self.profile.corrected(code)
        scaled = (corrected - corrected.mean(0).detach()) / (corrected.std(0).detach() + 1e-6)
        losses = {
            "matching": maximum_mean_discrepancy(scaled, members, self.config.kernel_widths, self.config.ridge),
            "correction": (corrected - code).square().mean(),
        }
        if "cell_type" in self.weights:
            known = types >= 0 if self.partial else None
            losses["cell_type"] = cross_entropy(self.classifier(scaled), types.clamp(min=0), known)
        self.engine.descend("profile", weighted_sum(losses, self.weights))
        with torch.no_grad():
            moved: list[Tensor] = list(self.profile.correction.parameters())
            if moved[0].device.type == "cuda":
                torch._foreach_mul_(moved, kept)
            else:
                torch._foreach_mul_(moved, 1.0 - self.config.weight_decay * rate)
        return losses

    def _drawn(self, kept: float) -> tuple[Members, Tensor, Tensor, Tensor]:
        """Return groups, types and codes of the cells of a step, and the share of the weights that a step keeps.

        What the host draws goes to a card in one copy, with the numbers that change from step to step.
        """
        n, device = self.codes.shape[1], self.codes.device
        rows, found = torch.arange(n), None
        if self._strata:
            chosen = (group[torch.randperm(len(group), generator=self.rng)[:size]] for group, size in self._strata)
            rows = torch.cat(list(chosen))
        elif n > CELLS_PER_STEP:
            rows = torch.randperm(n, generator=self.rng)[:CELLS_PER_STEP]
            found = group_members(self.on_host[0][rows], self.on_host[1][rows])
        view = torch.randint(len(self.codes), (len(rows),), generator=self.rng)
        rates, share = self.engine.coming(), torch.tensor(kept, dtype=self.codes.dtype)
        share, rows, view, *others = send([share, rows, view, *rates.values()], device, self._landing)
        self.engine.schedule(dict(zip(rates, others, strict=True)))
        code, types = self.codes[view, rows], self.cell_type
        if self._strata or found is not None:
            types = types[rows]
        return self.members if found is None else found, types, code, share

    def run(self, steps: int, bar: Progress | None = None) -> History:
        """Take some steps; return the means of the losses over ten parts of them."""
        recorded: dict[str, list[Tensor]] = {}
        for step in range(steps):
            for name, value in self.step(step / steps).items():
                recorded.setdefault(name, []).append(value.detach())
            if bar is not None:
                bar.update()
        self.profile.requires_grad_(False).eval()
        parts = min(N_PARTS, steps)
        return {
            name: [float(chunk.mean()) for chunk in torch.stack(values).cpu().tensor_split(parts)]
            for name, values in recorded.items()
        }


def principal_map(
    features: Tensor,
    floor: float,
    hidden: int,
    rng: torch.Generator,
    *,
    n_features: int | None = None,
    descriptor_share: float = 0.0,
    whitening: float = 0.0,
) -> ProfileMap | None:
    """Return the map to the principal components of the standardised features, not corrected yet.

    Those are kept that have at least `floor` of the variance of an average one. None where features do not vary.
    """
    n_features = features.shape[1] if n_features is None else n_features
    wide = features.to(torch.float64)
    mean, spread = wide.mean(0), wide.std(0, correction=0)
    alive = spread > DEAD * spread.max()
    if not bool(alive.any()):
        return None
    if n_features < features.shape[1]:
        # Features and descriptors have shares of the variance, however many there are of each.
        block = torch.arange(len(alive), device=alive.device) < n_features
        counts = alive[block].sum().clamp(min=1), alive[~block].sum().clamp(min=1)
        shares = torch.where(block, (1.0 - descriptor_share) / counts[0], descriptor_share / counts[1])
        spread = spread / (shares * alive.sum()).clamp(min=1e-12).sqrt()
    scaled = (wide - mean)[:, alive] / spread[alive]
    variance, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    kept = variance >= min(max(floor, 1e-6), float(variance.max()))
    variance, directions = variance[kept].flip(0), directions[:, kept].flip(1)
    if n_features < features.shape[1]:
        variance, directions = variance[:n_features], directions[:, :n_features]
    # Faint directions stay somewhat fainter than strong ones: they are known less well.
    size = variance.sqrt() + floor**0.5
    profile = new_network(ProfileMap, features.shape[1], len(size), n_features, hidden, rng=rng).to(features.device)
    profile.centre.copy_(mean)
    profile.read.zero_()
    profile.write.zero_()
    profile.read[alive] = (directions / spread[alive, None] / size).to(profile.read.dtype)
    if n_features < features.shape[1]:
        # The profile is the code in another basis, so that each of its numbers varies. The basis nearest to a fixed one
        # of the inputs does not depend on the signs of the directions, which are arbitrary.
        fixed = torch.randn(features.shape[1], n_features, generator=rng, dtype=torch.float64).to(size)
        left, _, right = torch.linalg.svd(directions.T @ fixed[alive], full_matrices=False)
        profile.write.copy_(size[:, None] ** (1.0 - whitening) * (left @ right) * (n_features / len(size)) ** 0.5)
        return profile
    profile.write[:, alive] = (directions * spread[alive, None] * size).T.to(profile.write.dtype)
    return profile


def recall_by_type(values: Tensor, cell_type: Tensor, known: Tensor, known_type: Tensor) -> Tensor:
    """Return, for each cell type, the share of its cells that are nearest to their own type's mean; NaN without cells.

    Parameters
    ----------
    values, known : Tensor of shape (n, d)
        Cells to name, and cells that the means and the scale are taken from.
    cell_type, known_type : Tensor of int, shape (n,)
        Cells of type -1 are left out.
    """
    values, cell_type = values[cell_type >= 0], cell_type[cell_type >= 0]
    known, known_type = known[known_type >= 0], known_type[known_type >= 0]
    if not len(values) or not len(known):
        return known.new_zeros(0)
    n_types = int(max(cell_type.max(), known_type.max())) + 1
    centre, spread = known.mean(0), known.std(0, correction=0) + 1e-12
    values, known = (values - centre) / spread, (known - centre) / spread
    ones = torch.ones(len(known), device=known.device)
    counts = torch.zeros(n_types, device=known.device).index_add(0, known_type, ones)
    means = torch.zeros(n_types, known.shape[1], device=known.device).index_add(0, known_type, known)
    distance = torch.cdist(values, means / counts.clamp(min=1)[:, None])
    distance[:, counts == 0] = torch.inf
    right = (distance.argmin(1) == cell_type).float()
    asked = torch.zeros_like(counts).index_add(0, cell_type, torch.ones_like(right))
    return torch.zeros_like(counts).index_add(0, cell_type, right) / asked


class ProfilePlan:
    """Stage 3 on the finished generator.

    Parameters
    ----------
    config : Config
    generator : Generator
        With its population statistics.
    cells : Cells
        Training cells.
    engine : Engine
        With the stream ``"classifiers"``.
    """

    name = "profile_alignment"

    def __init__(self, config: Config, generator: Generator, cells: Cells, engine: Engine) -> None:
        self.config, self.generator, self.cells, self.engine = config, generator.eval(), cells, engine
        self.rng = engine.rngs["classifiers"]
        self.events: list[Event] = []
        self.bar: Progress | None = None

    def run(
        self, validation: Cells | None, removal_epochs: int, names: Sequence[str], verbose: int = 0
    ) -> tuple[Weights, History]:
        """Fit profile map and image erasure; return the generator's weights with them, and the losses.

        Parameters
        ----------
        validation : Cells or None
            Held-out cells, on which cell types are watched.
        removal_epochs : int
            Of stage 2: the fit takes no more steps than it had.
        names : sequence of str
            Of the cell types, for the events.
        verbose : int, default=0
        """
        order, removal = torch.randperm(len(self.cells), generator=self.rng), self.config.removal
        steps = min(
            self.config.profile.steps,
            removal_epochs * n_minibatches(len(self.cells), removal.minibatch_size, removal.steps_per_epoch),
        )
        with Progress("profile alignment", self._n_parts(steps, validation), unit="part", verbose=verbose) as self.bar:
            self._erase(order)
            profile = self.config.profile
            if profile.descriptor_share > 0 and profile.matching * self.config.removal.batch > 0:
                self._describe(order[:FEATURE_CELLS])
            history = self._align(order[:FEATURE_CELLS], validation, steps, names)
            if not isinstance(self.generator.profile, ProfileMap):  # features are given as they are
                self.generator.descriptors = None
        return to_numpy(self.generator), history

    def _n_parts(self, steps: int, validation: Cells | None) -> int:
        """Return how many steps and readings there are."""
        chosen = min(len(self.cells), FEATURE_CELLS)
        reads = [chosen] * self.n_views + [0 if validation is None else min(len(validation), FEATURE_CELLS)]
        if self._erases:
            reads.append(min(len(self.cells), self._n_images))
        if self.config.profile.descriptor_share > 0:
            reads += [min(chosen, N_SIGNED), chosen]
        return steps * (self.matching > 0) + sum(-(-n // self.chunk) for n in reads)

    @property
    def _erases(self) -> bool:
        return self.config.profile.image_erasure and self.config.removal.batch > 0

    @property
    def _n_images(self) -> int:
        """Cells whose images are read for the erasure, at most."""
        return min(IMAGE_CELLS, max(256, IMAGE_VALUES // (self.cells.side**2 * self.cells.out_channels)))

    @property
    def matching(self) -> float:
        """Weight of the MMD."""
        return self.config.profile.matching * self.config.removal.batch

    @property
    def n_views(self) -> int:
        """Orientations of each cell that the profile is fitted on."""
        return self.config.profile.views if self.config.removal.augment and self.matching > 0 else 1

    @property
    def chunk(self) -> int:
        """Cells that are read at once."""
        return max(64, self.config.removal.minibatch_size)

    def _erase(self, order: Tensor) -> None:
        """Fit the erasure of the batch from the predicted images."""
        if not self._erases:
            return
        chosen = order[: self._n_images]
        images = self._read(chosen, lambda part: self.generator(part.source)[0])
        where = chosen.to(self.engine.device)
        erasure = fit_erasure(images, self.cells.batch[where], self.cells.cell_type[where])
        if erasure is not None:
            self.generator.erasure = erasure

    def _describe(self, chosen: Tensor) -> None:
        """Let the profile read descriptors of the predicted image, standardised over the training cells."""
        descriptors = self.engine.place(Descriptors(self.cells.out_channels))
        images = self._read(chosen[:N_SIGNED], lambda part: self.generator.image_of(part.source))
        sign = signs_of(images)
        descriptors.sign.copy_(sign)
        raw = self._read(chosen, lambda part: descriptors.raw(self.generator.image_of(part.source)))
        descriptors.calibrate(sign, raw)
        self.generator.descriptors = descriptors

    def _align(self, chosen: Tensor, validation: Cells | None, steps: int, names: Sequence[str]) -> History:
        """Fit the profile map with as much matching as no cell type falls to chance by."""
        profile, removal, weight = self.config.profile, self.config.removal, self.matching
        views = torch.stack([self._read(chosen, self._encode, turned=view > 0) for view in range(self.n_views)])
        where = chosen.to(self.engine.device)
        batch, cell_type = self.cells.batch[where], self.cells.cell_type[where]
        features, types = views[0], cell_type
        if validation is not None:
            others = torch.arange(len(validation))[:FEATURE_CELLS]
            features = self._read(others, self._encode, of=validation)
            types = validation.cell_type[others.to(self.engine.device)]
        if lost := at_chance(recall_by_type(features, types, views[0], cell_type)):
            message = (
                "these cell types have collapsed, their cells are named no better than by chance: "
                f"{_listed(lost, names)}; lower batch_weight, raise cell_type_weight or train longer"
            )
            self.events.append(Event("batch_removal", message))
        if weight == 0 or steps < 1 or not group_members(batch, cell_type):
            return {}
        if validation is not None:  # for what the profile changes the training cells can be asked too, which are more
            features, types = torch.cat([features, views[0]]), torch.cat([types, cell_type])
        before = recall_by_type(features, types, views[0], cell_type)
        fallen: set[int] = set()
        for share in profile.matching_shares:
            principal = principal_map(
                views[0],
                profile.floor,
                profile.hidden,
                self.rng,
                n_features=int(self.generator.bottleneck.out_channels),
                descriptor_share=profile.descriptor_share,
                whitening=profile.whitening,
            )
            if principal is None:
                return {}
            weights = {
                "matching": share * weight,
                "correction": profile.correction,
                "cell_type": profile.cell_type * removal.cell_type,
            }
            fit = ProfileFit(profile, weights, principal, views, batch, cell_type, self.engine.apart(), self.rng)
            if fallen and self.bar is not None:
                self.bar.extend(steps)
            history = fit.run(steps, self.bar)
            after = recall_by_type(principal(features), types, principal(views[0]), cell_type)
            if not (newly := newly_at_chance(before, after)):
                self.generator.profile = principal
                self._report(fallen, share, names)
                return history
            fallen |= set(newly)
        self._report(fallen, 0.0, names)
        return {}

    def _report(self, fallen: set[int], share: float, names: Sequence[str]) -> None:
        if not fallen:
            return
        message = f"these cell types would have collapsed: {_listed(sorted(fallen), names)}; " + (
            f"the profile was fitted with a share of {share:g} of matching"
            if share
            else "so the features are given as they are; lower matching or batch_weight"
        )
        self.events.append(Event(self.name, message))

    def _encode(self, part: Minibatch) -> Tensor:
        return self.generator.content_of(part.source)

    def _read(
        self, chosen: Tensor, read: Callable[[Minibatch], Tensor], turned: bool = False, of: Cells | None = None
    ) -> Tensor:
        """Return what the generator makes of the chosen cells, in full precision."""
        cells, parts = of or self.cells, []
        with torch.no_grad(), self.engine.autocast():
            for start in range(0, len(chosen), self.chunk):
                minibatch = cells.take(chosen[start : start + self.chunk])
                parts.append(read(symmetry(minibatch, self.rng) if turned else minibatch).float())
                if self.bar is not None:
                    self.bar.update()
        return torch.cat(parts)


def at_chance(recall: Tensor) -> list[int]:
    """Return the codes of the cell types that are named no better than by chance; where there is one type, none."""
    chance = 1.0 / len(recall) if len(recall) > 1 else 0.0
    return [code for code, value in enumerate(recall.tolist()) if value <= chance]


def newly_at_chance(before: Tensor, after: Tensor) -> list[int]:
    """Return the codes of the cell types that are named no better than by chance and were named twice as well before.

    A type between two others is hard to name in the best of cases, and has not collapsed for that.
    """
    return [code for code in at_chance(after) if float(after[code]) < 0.5 * float(before[code])]


def _listed(codes: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(names[code] for code in codes)


def build(config: Config, cells: Cells, design: Design | None, engine: Engine, start: Start) -> ProfilePlan:
    """Return stage 3, ready to be run.

    Parameters
    ----------
    config : Config
    cells : Cells
        Training cells.
    design : Design or None
        Not used: groups are those of the cells that are drawn.
    engine : Engine
        With the stream ``"classifiers"``.
    start : Start
        The finished generator, with its population statistics.
    """
    generator = generator_of(without_outputs(start.generator), engine.device, engine.dtype)
    return ProfilePlan(config, generator, cells, engine)
