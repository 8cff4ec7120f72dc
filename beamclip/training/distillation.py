"""The method of distillation: a module that turns a batch into (loss, metrics).

It registers only what learns, so that its state dict, which every checkpoint holds, contains no frozen
teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation
from beamclip.data.transforms import augment
from beamclip.losses.batch_terms import affinity_loss, crd_loss, icl_loss, relation_loss
from beamclip.losses.config import BatchTermsConfig, CsmConfig, FeatureConfig, VisionConfig
from beamclip.losses.contrastive import GlobalRows
from beamclip.losses.csm import csm_ensemble_loss, csm_loss
from beamclip.losses.feature import feature_loss
from beamclip.losses.weighted import weighted_sum
from beamclip.models.clip import ImageTower, normalise_pixels
from beamclip.models.student import embeddings_and_features, feature_width
from beamclip.prompts.anchors import Anchors
from beamclip.training.frozen import freeze_layers
from beamclip.training.loop import EmbeddedBatch

Metrics = dict[str, Tensor]


class Distillation(nn.Module):
    """Distillation of an image tower through similarities to text anchors (BeamCLIP, arXiv 2301.02903).

    It needs only images: the anchors stand for the text side. Temperatures, heads, further terms and several
    teachers are choices of this project, not of the paper. The distributions of several teachers over their
    anchors are averaged; the student's embeddings lie in the first teacher's space. Teachers of vision only
    have no anchors: the features of the student's backbone learn from theirs.
    """

    def __init__(
        self,
        student: ImageTower,
        teachers: Sequence[Callable[[Tensor], Tensor]],
        anchors: Sequence[Anchors],
        *,
        csm: CsmConfig,
        feature: FeatureConfig,
        augmentation: Augmentation,
        terms: BatchTermsConfig | None = None,
        vision: VisionConfig | None = None,
        vision_widths: Sequence[int] = (),
        embed_texts: Callable[[list[str]], Tensor] | None = None,
        seed: int = 0,
        frozen_layers: int = 0,
    ) -> None:
        """Register the student, the anchors, and a projection for each teacher of vision only.

        Args:
            teachers: frozen image towers as functions, not as submodules: uint8 [B, 3, H, W] -> float32
                [B, D] of unit length; those with anchors first, then those of vision only. If empty, the
                batches carry the teachers' embeddings.
            anchors: one for each teacher that has a text tower, also if the batches carry the embeddings; all
                of the same texts.
            terms, vision: further terms; None for none.
            vision_widths: of the features of each teacher of vision only.
            embed_texts: the first teacher's text tower as a function, B texts -> float32 [B, D] of unit
                length, for terms that read captions. Without teachers, the batches carry its embeddings, too,
                after those of the images: zeros where there is no caption.
            seed: decides the first weights of the projections.
            frozen_layers: of the student, the lowest ones; they keep their weights.
        """
        super().__init__()
        self.visual = student.network
        self.kept_in_eval = [f"visual.{name}" for name in freeze_layers(self.visual, frozen_layers)]
        self.anchors: Tensor
        for index, of_teacher in enumerate(anchors):
            name = "anchors" if index == 0 else f"anchors_{index}"
            self.register_buffer(name, of_teacher.embeddings, persistent=False)
        self.num_teachers = len(anchors)
        self.student = student.preprocessing
        # Functions, because a deep copy of the method would copy the object of a bound method too.
        self.teachers = [lambda pixels, embed=embed: embed(pixels) for embed in teachers]
        self.embed_texts = embed_texts and (lambda texts: embed_texts(texts))
        self.csm = csm
        self.feature = feature
        self.terms = terms or BatchTermsConfig()
        self.vision = vision or VisionConfig()
        self.num_vision = len(vision_widths)
        self.projections = nn.ModuleList()
        if self.vision.vision_feature_weight and vision_widths:
            self.projections.extend(_projections(feature_width(student), vision_widths, seed))
        self._encode_with_features = embeddings_and_features
        self.augmentation = augmentation

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts but those that are frozen."""
        super().train(mode)
        for name in self.kept_in_eval:
            self.get_submodule(name).eval()
        return self

    @property
    def compares_samples(self) -> bool:
        """Whether a term of the loss compares samples with each other."""
        relates = bool(self.num_vision and self.vision.vision_relation_weight)
        return self.terms.compare_samples or relates

    @property
    def learns_features(self) -> bool:
        """Whether a term of the loss needs the student's features beside its embeddings."""
        return bool(self.num_vision and self.vision.is_on)

    def set_grad_checkpointing(self) -> None:
        """Recompute activations within the student's blocks or stages, if its network can, to save memory."""
        self.visual.set_grad_checkpointing()  # type: ignore[operator]

    def compile_networks(self) -> None:
        """Have torch compile the student at its next call."""
        self.visual.compile()
        self._encode_with_features = torch.compile(embeddings_and_features)

    def forward(self, batch: Batch, gradients: Sequence[Tensor] | None = None) -> tuple[Tensor, Metrics]:
        """Return a batch's loss, and its terms and the cosine to the first teacher, detached.

        All are sums over the samples times their weights. With the gradients of the loss with respect to what
        the student learns (see `embed`), return the sum of that times its gradients, and no metrics; see
        GradCached.
        """
        if gradients is None:
            return self.compare([self.embed(batch)])
        learned = self._learned(augment(batch.pixels, batch.draws, self.augmentation))
        return torch.stack([(own * by).sum() for own, by in zip(learned, gradients, strict=True)]).sum(), {}

    def embed(self, batch: Batch) -> EmbeddedBatch:
        """Return the student's embeddings; weights, numbers, each teacher's embeddings and those of texts.

        With teachers of vision only, the student's unit features and their projections follow its embeddings.
        """
        pixels = augment(batch.pixels, batch.draws, self.augmentation)
        seen = batch.pixels if self.augmentation.teacher_view == "weak" else pixels
        given = (batch.weights, batch.numbers, *self._given(seen, batch))
        return EmbeddedBatch(self._learned(pixels), given, batch.global_size)

    def compare(self, parts: list[EmbeddedBatch]) -> tuple[Tensor, Metrics]:
        """Return loss and metrics of this rank's batch, in one or more parts."""
        student, *features = (torch.cat(rows) for rows in zip(*(part.learned for part in parts), strict=True))
        weights, numbers, *given = (
            torch.cat(rows) for rows in zip(*(part.given for part in parts), strict=True)
        )
        images = self.num_teachers + self.num_vision
        embedded, seen, texts = given[: self.num_teachers], given[self.num_teachers : images], given[images:]
        loss, metrics = self._loss(student, embedded, weights)
        metrics["teacher_cosine"] = weighted_sum((student * embedded[0]).sum(dim=-1), weights)
        rows = GlobalRows(weights, numbers, parts[0].global_size)
        further = self._batch_terms(student, embedded[0], texts, rows)
        if self.learns_features:
            further |= self._vision_terms(features[0], features[1:], seen, rows)
        if further:
            metrics |= {f"loss/{name}": value for name, (_, value) in further.items()}
            loss = loss + torch.stack([weight * value for weight, value in further.values()]).sum()
        return loss, {name: value.detach() for name, value in metrics.items()}

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embed pixels, uint8 [B, 3, H, W], as they are: float32 [B, D] of unit length."""
        images = normalise_pixels(pixels, self.student, channels_last=True)
        return F.normalize(self.visual(images).float(), dim=-1)

    def _learned(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return what gradients flow through, float32, of augmented pixels; see `embed`."""
        if not self.learns_features:
            return (self.embed_images(pixels),)
        images = normalise_pixels(pixels, self.student, channels_last=True)
        embeddings, features = self._encode_with_features(self.visual, images)
        features = features.float()
        projected = (projection(features).float() for projection in self.projections)
        return (F.normalize(embeddings.float(), dim=-1), F.normalize(features, dim=-1), *projected)

    def loss_of(self, images: Tensor, batch: Batch) -> Tensor:
        """Return the loss of what `embed_images` returned, against the embeddings that a batch carries.

        It is a sum over the samples times their weights, without the terms that compare samples and those of
        teachers of vision only.
        """
        return self._loss(images, _units(batch.embeddings), batch.weights)[0]

    def _loss(self, student: Tensor, embedded: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Metrics]:
        """Return the loss of single samples, and its terms before weighting."""
        terms: Metrics = {}
        weighted = [student.new_zeros(())]
        if self.csm.csm_weight:
            terms["loss/csm"] = self._csm(student, embedded, weights)
            weighted.append(self.csm.csm_weight * terms["loss/csm"])
        if self.feature.feature_weight:
            terms["loss/feature"] = feature_loss(student, embedded[0], self.feature.feature_kind, weights)
            weighted.append(self.feature.feature_weight * terms["loss/feature"])
        return torch.stack(weighted).sum(), terms

    def _batch_terms(
        self, student: Tensor, teacher: Tensor, texts: Sequence[Tensor], rows: GlobalRows
    ) -> dict[str, tuple[float, Tensor]]:
        """Return weight and value of each term that compares samples."""
        terms = self.terms
        taus = {"tau_student": self.csm.tau_student, "tau_teacher": self.csm.tau_teacher}
        found: dict[str, tuple[float, Tensor]] = {}
        if terms.relation_weight:
            value = relation_loss(student, teacher, **taus, rows=rows)
            found["relation"] = (terms.relation_weight, value)
        if not terms.read_captions:
            return found
        captions = texts[0]
        captioned = replace(rows, weights=rows.weights * captions.any(dim=1))
        if terms.icl_weight:
            value = icl_loss(student, captions, tau=self.csm.tau_student, rows=captioned)
            found["icl"] = (terms.icl_weight, value)
        if terms.crd_weight:
            value = crd_loss(student, teacher, captions, **taus, rows=captioned)
            found["crd"] = (terms.crd_weight, value)
        if terms.affinity_weight:
            value = affinity_loss(student, teacher, captions, rows=captioned)
            found["affinity"] = (terms.affinity_weight, value)
        return found

    def _vision_terms(
        self, features: Tensor, projected: Sequence[Tensor], teachers: Sequence[Tensor], rows: GlobalRows
    ) -> dict[str, tuple[float, Tensor]]:
        """Return weight and value of each term of the teachers of vision only, means over these.

        Args:
            features: [B, F], the student's, of unit length.
            projected: the student's features, projected for each teacher; empty if that term is off.
            teachers: features of each, of unit length.
        """
        terms = self.vision
        found: dict[str, tuple[float, Tensor]] = {}
        if terms.vision_relation_weight:
            taus = {"tau_student": terms.vision_tau, "tau_teacher": terms.vision_tau}
            values = [relation_loss(features, teacher, **taus, rows=rows) for teacher in teachers]
            found["vision_relation"] = (terms.vision_relation_weight, torch.stack(values).mean())
        if terms.vision_feature_weight:
            pairs = zip(projected, teachers, strict=True)
            values = [feature_loss(own, teacher, "cosine", rows.weights) for own, teacher in pairs]
            found["vision_feature"] = (terms.vision_feature_weight, torch.stack(values).mean())
        return found

    @torch.no_grad()
    def _given(self, seen: Tensor, batch: Batch) -> list[Tensor]:
        """Return each teacher's unit embeddings, float32 [B, D], and those of captions that are read."""
        if not self.teachers:
            return _units(batch.embeddings)
        embedded = [embed(seen) for embed in self.teachers]
        if self.embed_texts is None or not self.terms.read_captions:
            return embedded
        texts = self.embed_texts(batch.captions)
        has_caption = torch.tensor([bool(text) for text in batch.captions], device=texts.device)
        return [*embedded, texts * has_caption[:, None]]

    def _csm(self, student: Tensor, embedded: Sequence[Tensor], weights: Tensor) -> Tensor:
        if self.num_teachers == 1:
            return csm_loss(
                student,
                embedded[0],
                self.anchors,
                tau_student=self.csm.tau_student,
                tau_teacher=self.csm.tau_teacher,
                chunk_size=self.csm.anchor_chunk,
                weights=weights,
            )
        names = ["anchors", *(f"anchors_{index}" for index in range(1, self.num_teachers))]
        teachers = [(each, getattr(self, name)) for each, name in zip(embedded, names, strict=True)]
        further = self.csm.more_tau_teachers or (self.csm.tau_teacher,) * (self.num_teachers - 1)
        return csm_ensemble_loss(
            student,
            self.anchors,
            teachers,
            tau_student=self.csm.tau_student,
            tau_teachers=(self.csm.tau_teacher, *further),
            weights=weights,
        )


def _projections(width: int, widths: Sequence[int], seed: int) -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return [nn.Linear(width, each) for each in widths]


def _units(embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Return stored embeddings as float32 of unit length: half precision leaves the length off by 1e-4."""
    return [F.normalize(each.float(), dim=-1) for each in embeddings]
