// A page that was opened as a file may start no worker, so the search's worker runs in a hidden frame there.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = Object.assign(document.createElement("iframe"), { hidden: true, title: "search" });
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = Object.assign(inside.document.createElement("script"), { src: url });
      this.ready = new Promise((resolve) => script.addEventListener("load", resolve));
      this.send = (data) => inside.dispatchEvent(new MessageEvent("message", { data }));
      inside.document.body.append(script);
    }

    postMessage(data) {
      this.ready.then(() => this.send(data));
    }
  };
}
