/* Search runs in a worker, which browsers refuse to pages from the disk. There a hidden frame takes its place. */
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.body.appendChild(document.createElement("iframe"));
      frame.hidden = true;
      this.inner = frame.contentWindow;
      this.inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const code = this.inner.document.createElement("script");
      this.loaded = new Promise((resolve) => (code.onload = resolve));
      code.src = script;
      this.inner.document.body.append(code);
    }
    postMessage(data) {
      this.loaded.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
