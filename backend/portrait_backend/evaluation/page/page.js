"use strict";
// The page around the viewers: enlarging pictures, switches, and a count of errors that anybody (and any test) can read.

window.addEventListener("error", (event) => fail(event.message));
window.addEventListener("unhandledrejection", (event) => fail(String(event.reason)));

function fail(message) {
  const root = document.documentElement;
  root.dataset.errors = Number(root.dataset.errors || 0) + 1;
  root.dataset.error = message;
}

function enlarge() {
  const dialog = document.querySelector("dialog"), pictures = dialog.querySelectorAll("img"), caption = dialog.querySelector("p");
  let zoom = 1;
  const show = () => pictures.forEach((picture) => { picture.style.transform = `scale(${zoom})`; });
  document.querySelectorAll(".views img").forEach((picture) => {
    picture.tabIndex = 0;
    const open = () => {
      const photo = picture.closest("section").querySelector("img.photo");
      const beside = photo !== null && photo !== picture;
      pictures[0].parentElement.hidden = !beside;
      if (beside) pictures[0].src = photo.src;
      pictures[1].src = picture.src;
      caption.textContent = `${beside ? "photo, and " : ""}${picture.alt}. Wheel: zoom, move: look around, Escape: close`;
      zoom = 1;
      show();
      dialog.showModal();
    };
    picture.addEventListener("click", open);
    picture.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
  });
  dialog.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom = Math.min(Math.max(zoom * Math.exp(-event.deltaY / 400), 1), 12);
    show();
  }, { passive: false });
  dialog.addEventListener("pointermove", (event) => {
    for (const picture of pictures) {
      const box = picture.parentElement.getBoundingClientRect();
      const own = event.clientX >= box.left && event.clientX <= box.right;
      if (!own) continue;
      const x = ((event.clientX - box.left) / box.width) * 100, y = ((event.clientY - box.top) / box.height) * 100;
      pictures.forEach((one) => { one.style.transformOrigin = `${x}% ${y}%`; });
    }
  });
  dialog.addEventListener("click", () => dialog.close());
}

function main() {
  enlarge();
  const canvases = document.querySelectorAll("canvas[data-mesh]");
  if (!canvases.length) return;
  try {
    const stage = new Stage(canvases);
    for (const name of ["clay", "linked"]) {
      document.getElementById(name).addEventListener("change", (event) => { stage[name] = event.target.checked; stage.draw(); });
    }
  } catch (error) {
    canvases.forEach((canvas) => canvas.replaceWith(`The 3D view can't be shown: ${error.message}.`));
    document.documentElement.dataset.viewer = error.message;
  }
}

main();
