"use strict";
for (const box of document.querySelectorAll(".scene")) {
  if (box.dataset.start === "page") {
    draw(box);
  } else {
    const button = document.createElement("button");
    button.textContent = "Show in 3D";
    button.onclick = () => { button.remove(); draw(box); };
    box.append(button);
  }
}

function draw(box) {
  const data = JSON.parse(box.parentElement.querySelector("script").textContent);
  let viewer = null;
  try {
    viewer = $3Dmol.createViewer(box, { backgroundColor: "white" });
  } catch (error) {
    console.error(error);
  }
  if (!viewer) {
    box.textContent = "This browser has no WebGL; the structures are drawn below.";
    box.style.height = "auto";
    box.style.padding = "0.9rem";
    return;
  }
  const count = data.symbols.length;
  const text = data.frames.map((xyz) => [
    count, "", ...data.symbols.map((s, k) => [s, ...xyz.slice(3 * k, 3 * k + 3)].join(" ")),
  ].join("\n")).join("\n");
  const model = viewer.addModelsAsFrames(text, "xyz");
  if (count > 3000) {
    viewer.setStyle({}, { line: {} });
  } else {
    viewer.setStyle({}, { stick: { radius: 0.12 }, sphere: { scale: 0.26 } });
  }
  // The number of atoms that the scene holds, for tests and for the curious.
  box.dataset.atoms = model.selectedAtoms({}).length;
  box.dataset.frames = model.getNumFrames();

  const controls = box.parentElement.querySelector(".controls");
  const [play, slider] = [controls.querySelector("button"), controls.querySelector("input")];
  const label = controls.querySelector("output");
  let edges = null;
  const show = async (frame) => {
    await viewer.setFrame(frame);
    const cell = data.cells[frame].flat().join();
    if (cell !== edges) {
      viewer.removeAllShapes();
      for (const [x, y, z, u, v, w] of data.cells[frame]) {
        viewer.addLine({ start: { x, y, z }, end: { x: u, y: v, z: w }, color: "gray" });
      }
      edges = cell;
    }
    viewer.render();
    slider.value = frame;
    label.textContent = data.labels[frame];
    box.dataset.frame = frame;
  };
  slider.max = data.frames.length - 1;
  slider.oninput = () => show(Number(slider.value));
  let timer = null;
  play.onclick = () => {
    play.textContent = timer ? "▶" : "❚❚";
    timer = timer ? clearInterval(timer) : setInterval(
      () => show((Number(slider.value) + 1) % data.frames.length), 60);
  };
  controls.hidden = data.frames.length < 2;
  show(0).then(() => { viewer.zoomTo(); viewer.render(); });
}
