"use strict";
// Draws every mesh of the page with one WebGL 2 context (browsers allow few): each viewer is a 2D canvas that gets a copy.
// Axes and camera are the project's: head units, +y up, the face looks along +z, 2.7 units away, 18.837 degrees of view.

const RADIUS = 2.7, FOCAL = 1 / Math.tan((18.837 * Math.PI) / 360), MAX_PITCH = 1.5, FIRST_TURN = 0.5;

const VERTEX = `#version 300 es
in vec3 position, normal, colour; in vec2 uv;
uniform mat4 camera; uniform mat3 turn;
out vec3 facing, tint; out vec2 at;
void main() { gl_Position = camera * vec4(position, 1.0); facing = turn * normal; tint = colour; at = uv; }`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec3 facing, tint; in vec2 at;
uniform sampler2D image; uniform bool textured, clay;
out vec4 result;
void main() {
  vec3 n = normalize(facing);
  float light = 0.3 + 0.7 * max(dot(n, normalize(vec3(0.4, 0.5, 0.75))), 0.0);
  vec3 painted = textured ? texture(image, at).rgb * tint : tint;
  result = vec4(clay ? vec3(0.82, 0.79, 0.75) * light : painted, 1.0);
}`;

function shader(gl, kind, source) {
  const made = gl.createShader(kind);
  gl.shaderSource(made, source);
  gl.compileShader(made);
  if (!gl.getShaderParameter(made, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(made));
  return made;
}

class Renderer {
  constructor() {
    this.canvas = document.createElement("canvas");
    const gl = (this.gl = this.canvas.getContext("webgl2", { antialias: true, alpha: true }));
    if (!gl) throw new Error("this browser has no WebGL 2");
    const program = (this.program = gl.createProgram());
    gl.attachShader(program, shader(gl, gl.VERTEX_SHADER, VERTEX));
    gl.attachShader(program, shader(gl, gl.FRAGMENT_SHADER, FRAGMENT));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    this.at = (name) => gl.getUniformLocation(program, name);
  }

  async load(parts) {
    return Promise.all(parts.map((part) => this.loadPart(part)));
  }

  async loadPart(part) {
    const gl = this.gl, array = gl.createVertexArray();
    gl.bindVertexArray(array);
    this.attribute("position", floats(part.position), 3, gl.FLOAT, false);
    this.attribute("uv", floats(part.uv), 2, gl.FLOAT, false);
    this.attribute("normal", new Int8Array(bytes(part.normal)), 3, gl.BYTE, true);
    this.attribute("colour", new Uint8Array(bytes(part.colour)), 3, gl.UNSIGNED_BYTE, true);
    const indices = new Uint32Array(bytes(part.index));
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    return { array, count: indices.length, texture: part.texture ? await this.texture(part.texture) : null };
  }

  attribute(name, data, size, type, normalised) {
    const gl = this.gl, place = gl.getAttribLocation(this.program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, type, normalised, 0, 0);
  }

  async texture(source) {
    const gl = this.gl, image = new Image();
    image.src = source;
    await image.decode();
    const made = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, made);
    gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, true);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    return made;
  }

  draw(parts, pose, clay, width, height) {
    const gl = this.gl, { camera, turn } = matrices(pose, width / height);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix4fv(this.at("camera"), false, camera);
    gl.uniformMatrix3fv(this.at("turn"), false, turn);
    gl.uniform1i(this.at("clay"), clay);
    for (const part of parts) {
      gl.uniform1i(this.at("textured"), part.texture !== null);
      gl.bindTexture(gl.TEXTURE_2D, part.texture);
      gl.bindVertexArray(part.array);
      gl.drawElements(gl.TRIANGLES, part.count, gl.UNSIGNED_INT, 0);
    }
    return this.canvas;
  }
}

// Column-major: the camera's projection times its pose, and its rotation.
function matrices({ azimuth, pitch, zoom }, aspect) {
  const [sa, ca, sp, cp] = [Math.sin(azimuth), Math.cos(azimuth), Math.sin(pitch), Math.cos(pitch)];
  const right = [ca, 0, -sa], up = [-sa * sp, cp, -ca * sp], back = [sa * cp, sp, ca * cp];
  const near = 0.5, far = 6, fx = (FOCAL * zoom) / Math.max(aspect, 1), fy = fx * aspect;
  const a = (far + near) / (near - far), b = (2 * far * near) / (near - far);
  const camera = [];
  for (let k = 0; k < 3; k++) camera.push(fx * right[k], fy * up[k], a * back[k], -back[k]);
  camera.push(0, 0, b - a * RADIUS, RADIUS);
  const turn = [0, 1, 2].flatMap((k) => [right[k], up[k], back[k]]);
  return { camera, turn };
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer;
}

// 16-bit steps between a low and a high value for each column.
function floats({ data, low, high }) {
  const steps = new Uint16Array(bytes(data)), columns = low.length;
  return Float32Array.from(steps, (v, i) => low[i % columns] + ((high[i % columns] - low[i % columns]) * v) / 65535);
}

class Viewer {
  constructor(canvas, stage) {
    Object.assign(this, { canvas, stage, parts: null, pose: { azimuth: FIRST_TURN, pitch: 0, zoom: 1 } });
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) this.turn((-event.movementX / canvas.clientWidth) * 4, (event.movementY / canvas.clientHeight) * 4);
    });
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.turn(0, 0, Math.exp(-event.deltaY / 600)); }, { passive: false });
    canvas.addEventListener("dblclick", () => this.stage.change(this, { azimuth: FIRST_TURN, pitch: 0, zoom: 1 }));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0.2, 0], ArrowRight: [-0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] }[event.key];
      if (step) { event.preventDefault(); this.turn(...step); }
    });
  }

  turn(azimuth, pitch, zoom = 1) {
    const p = this.pose, limit = (v, low, high) => Math.min(Math.max(v, low), high);
    this.stage.change(this, { azimuth: p.azimuth + azimuth, pitch: limit(p.pitch + pitch, -MAX_PITCH, MAX_PITCH), zoom: limit(p.zoom * zoom, 0.5, 12) });
  }

  async load() {
    if (this.parts) return;
    this.parts = [];
    this.parts = await this.stage.renderer.load(JSON.parse(document.getElementById(this.canvas.dataset.mesh).textContent));
    this.draw();
    this.canvas.dataset.coverage = this.coverage().toFixed(3);
  }

  draw() {
    if (!this.parts || !this.parts.length) return;
    const scale = window.devicePixelRatio || 1, canvas = this.canvas;
    const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const image = this.stage.renderer.draw(this.parts, this.pose, this.stage.clay, width, height), context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.drawImage(image, 0, 0);
  }

  // Share of the canvas that the mesh covers: 0 means that nothing was drawn.
  coverage() {
    const { width, height } = this.canvas, pixels = this.canvas.getContext("2d").getImageData(0, 0, width, height).data;
    let covered = 0;
    for (let i = 3; i < pixels.length; i += 4) covered += pixels[i] > 0;
    return covered / (width * height);
  }
}

class Stage {
  constructor(canvases) {
    Object.assign(this, { renderer: new Renderer(), clay: false, linked: true });
    this.viewers = [...canvases].map((canvas) => new Viewer(canvas, this));
    const waiting = new Map(this.viewers.map((viewer) => [viewer.canvas, viewer]));
    const watch = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) { watch.unobserve(target); waiting.get(target).load(); }
    }, { rootMargin: "400px" });
    for (const canvas of waiting.keys()) watch.observe(canvas);
    window.addEventListener("resize", () => this.draw());
  }

  change(viewer, pose) {
    for (const one of this.linked ? this.viewers : [viewer]) { one.pose = { ...pose }; one.draw(); }
  }

  draw() {
    for (const viewer of this.viewers) viewer.draw();
  }
}
