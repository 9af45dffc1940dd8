"""What a server serves now, looked up once and again when it changes."""

from __future__ import annotations

from dataclasses import dataclass

from nllb_prune.evaluation.detectors.identification import LanguageIdentifier
from nllb_prune.serving.http.asked import Offer
from nllb_prune.serving.http.backend import Backend, Description
from nllb_prune.serving.http.codes import ServedLanguages
from nllb_prune.serving.http.detection import Detector
from nllb_prune.serving.http.settings import ServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A backend that is ready, and what follows from what it says of itself."""

    backend: Backend
    description: Description
    offer: Offer
    detector: Detector

    @property
    def languages(self) -> ServedLanguages:
        """Those that are translated."""
        return self.offer.languages

    @classmethod
    def by(
        cls, backend: Backend, description: Description, settings: ServerSettings, identifier: LanguageIdentifier
    ) -> Served:
        """Return what a backend serves that describes itself so."""
        languages = ServedLanguages(description.directions)
        return cls(
            backend=backend,
            description=description,
            offer=Offer(settings=settings, languages=languages, beams=description.beams, full=description.offers_full),
            detector=Detector(identifier, languages.sources, usual=languages.usual_source()),
        )
