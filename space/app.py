"""The demo of a model that predicts classes, labels or numbers from pictures, texts, or both; it also shows why.

    MODEL_ID=path/to/model python app.py

Without MODEL_ID it serves the model that settings.json names, or the folder ./model beside it. It needs transformers,
torch, Pillow and gradio. It uses the network only to download a model from the Hub.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

import page
from about import Card, Settings, read_card, read_settings, with_preprocessing
from batch import MAX_ROWS, TABLES
from classifier import Classifier, NoClassifierError, find_model
from guard import Guard, refuse_addresses
from service import Service

HERE = Path(__file__).resolve().parent
UPLOAD_LIMIT = "10mb"
WAITING = 32
AT_ONCE = 2
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONOSPACED = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
# On a phone the answer may be outside the screen; if it is visible nothing moves.
INTO_VIEW = "() => document.querySelector('.verdict').scrollIntoView({block: 'nearest', behavior: 'smooth'})"


def build(service: Service, settings: Settings, card: Card) -> gr.Blocks:
    """The page."""
    demo = gr.Blocks(title=page.title_of(settings), analytics_enabled=False, delete_cache=(3600, 3600))
    with demo:
        _html(page.masthead(settings, card, service.classifier))
        with gr.Tabs():
            with gr.Tab("Try it"):
                _try_it(service)
            with gr.Tab("Many at once"):
                _many_at_once(service)
            with gr.Tab("About"):
                gr.Markdown(card.text or "This model has no card.", elem_classes="card-text")
            with gr.Tab("API"):
                _html(page.api(service.classifier, service.text_names, AT_ONCE, WAITING), has_buttons=True)
        _html(page.FOOT)
    return demo


def _html(value: str, *, has_buttons: bool = False, visible: bool = True) -> gr.HTML:
    script = (HERE / "page.js").read_text(encoding="utf-8") if has_buttons else None
    return gr.HTML(value, js_on_load=script, apply_default_css=False, visible=visible)


def _try_it(service: Service) -> None:
    explains = service.explainer.method is not None or service.explainer.weighs_words
    with gr.Row(elem_classes="ask-and-answer"):
        with gr.Column(elem_classes="ask"):
            inputs = _inputs(service)
            with gr.Row(elem_classes="go"):
                explain = gr.Checkbox(True, label="Explain the prediction", visible=explains)
                button = gr.Button(service.classifier.target.action, variant="primary", elem_id="classify")
        with gr.Column(elem_classes="answer-column"):
            answer = [_html(page.no_sample_yet(service.classifier, service.examples)), _html("")]
        with gr.Column(elem_classes="examples-column"):
            shown = page.examples(service.classifier.target, service.examples, service.pictures)
            examples = _html(shown, has_buttons=True, visible=bool(service.examples))

    model: dict[str, Any] = {"concurrency_limit": AT_ONCE, "concurrency_id": "model"}
    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    show: dict[str, Any] = {"fn": service.show, "inputs_kwargs": {**inputs, "explain": explain}, "outputs": answer}
    triggers = [button.click, explain.input, *(box.submit for name, box in inputs.items() if name != "picture")]
    chosen = examples.click(service.choose_example, outputs=list(inputs.values()), queue=False, **quietly)
    if list(inputs) == ["picture"]:
        # A picture alone is predicted as soon as it changes; choosing an example changes it, too.
        triggers.append(inputs["picture"].change)
    else:
        chosen.then(**show, **quietly, **model).then(None, js=INTO_VIEW)
    gr.on(triggers, trigger_mode="always_last", **show, **quietly, **model).then(None, js=INTO_VIEW)
    # The API has its own event, so that programs get values instead of HTML.
    gr.Button(visible=False).click(
        service.classify, inputs_kwargs={**inputs, "explain": gr.Checkbox(False, visible=False)},
        outputs=gr.JSON(visible=False), api_name="classify", api_description=service.description, **model,
    )  # fmt: skip


def _inputs(service: Service) -> dict[str, Any]:
    """The fields of a sample, by their names in the API."""
    inputs: dict[str, Any] = {}
    if service.classifier.takes_picture:
        inputs["picture"] = gr.Image(
            type="filepath",
            # Lossless: the shown picture of an example is predicted again.
            format="png",
            label="Picture",
            sources=["upload", "clipboard", "webcam"],
            placeholder="Drop a picture here, paste one,\nor click to choose a file",
            buttons=[],
            height=300,
            elem_id="picture",
        )
        refuse_addresses(inputs["picture"])
    for name, text in zip(("text", "second_text"), service.text_names, strict=False):
        inputs[name] = gr.Textbox(label=text.replace("_", " ").capitalize(), lines=4, max_lines=12)
    return inputs


def _many_at_once(service: Service) -> None:
    kinds = [*(["image"] if service.classifier.takes_picture else []), *(TABLES if service.text_names else [])]
    with gr.Column(elem_classes="batch"):
        _html(page.batch_help(service.classifier, service.text_names, MAX_ROWS))
        files = gr.File(file_count="multiple", file_types=kinds, label="Files", height=160)
        refuse_addresses(files)
        with gr.Row(elem_classes="go"):
            button = gr.Button(f"{service.classifier.target.action} all", variant="primary")
            download = gr.DownloadButton("Download as CSV", interactive=False)
        table = _html("")

    button.click(
        service.predict_files, files, [table, download], api_visibility="private", concurrency_limit=1,
        concurrency_id="batch", show_progress="minimal", show_progress_on=table,
    )  # fmt: skip


def launch(demo: gr.Blocks, *, wait: bool = True) -> str:
    """Serve the page, on a Space to its visitors, else on this machine only; returns its address.

    Args:
        demo: the page.
        wait: return only when the demo is stopped.
    """
    demo.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    _, address, _ = demo.launch(
        theme=gr.themes.Base(font=list(FONTS), font_mono=list(MONOSPACED)),
        css_paths=HERE / "style.css",
        # Only uploads and answers are served, no other file beside this one or in the current folder.
        allowed_paths=[],
        blocked_paths=[str(HERE), str(Path.cwd())],
        max_file_size=UPLOAD_LIMIT,
        app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None, "openapi_url": None},
        strict_cors=True,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        share=False,
        pwa=False,
        run_history=False,
        footer_links=[],
        state_session_capacity=500,
        prevent_thread_lock=not wait,
        # Otherwise gradio requests its own page, and exits if a busy machine takes more than three seconds.
        _frontend=False,
    )
    return str(address)


def main() -> None:
    """Load the model and serve it."""
    # No telemetry, and uploads in a folder that is deleted when the demo ends; gradio reads both variables later.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with TemporaryDirectory(prefix="demo-") as scratch:
        uploads = os.environ.setdefault("GRADIO_TEMP_DIR", scratch)
        settings = read_settings(HERE)
        try:
            folder = find_model(settings.model, settings.revision)
            settings = with_preprocessing(settings, folder)
            classifier = Classifier(
                folder,
                texts=len(settings.text_names),
                max_length=settings.max_length,
                white=settings.largest_pixel_value,
                least_side=settings.decoded_side,
                trust_remote_code=settings.trust_remote_code,
            )
        except NoClassifierError as error:
            sys.exit(f"error: {error}")
        service = Service(classifier, settings, HERE, uploads=Path(uploads))
        launch(build(service, settings, read_card(folder)))


if __name__ == "__main__":
    main()
