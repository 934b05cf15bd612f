// Browsers refuse to start workers from files, so the search of a site that is read from a disk
// runs in a hidden frame instead. MkDocs Material would load such a shim from the network.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const inner = this.frame.contentWindow;
      inner.postMessage = (data) => window.postMessage({ worker: true, data }, "*");
      inner.importScripts = async (...files) => {
        for (const file of files) await this.load(inner, file);
      };
      window.addEventListener("message", (event) => {
        if (event.data && event.data.worker) {
          event.stopImmediatePropagation();
          this.dispatchEvent(new MessageEvent("message", { data: event.data.data }));
        }
      }, true);
      this.load(inner, new URL(script, document.baseURI).href).then(() => {
        this.ready = true;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
    }

    load(inner, file) {
      return new Promise((resolve, reject) => {
        const element = inner.document.createElement("script");
        Object.assign(element, { src: file, onload: resolve, onerror: reject });
        inner.document.body.append(element);
      });
    }

    postMessage(data) {
      if (!this.ready) this.waiting.push(data);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
