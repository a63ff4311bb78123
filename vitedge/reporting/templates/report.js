"use strict";
document.getElementById("save")?.addEventListener("click", async () => {
  const holder = document.getElementById("raw");
  let data = new Blob([holder.textContent]);
  if (holder.type === "application/gzip") {
    const bytes = Uint8Array.from(atob(holder.textContent.trim()), (letter) => letter.charCodeAt(0));
    data = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(data);
  link.download = "results.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
