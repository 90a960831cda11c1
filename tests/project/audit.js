// Returns what is wrong with a page as a list of sentences: content that is wider than the window,
// pictures without a description, and text with too little contrast (WCAG 2.2, level AA).
const found = [];
const name = (e) => `<${e.tagName.toLowerCase()}${e.className && e.className.baseVal === undefined
    ? "." + e.className.trim().split(/\s+/).join(".") : ""}> ${JSON.stringify((e.textContent || "").trim().slice(0, 40))}`;

document.querySelectorAll("details").forEach((e) => { e.open = true; });
const width = document.documentElement.clientWidth;
const main = document.querySelector("[role=main], main, article") || document.body;

const scrolls = (e) => ["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(e).overflowX);
// whether a part of the page scrolls with, or is cut off by, what it is in
const contained = (e) => {
    for (let p = e.parentElement; p && p !== main; p = p.parentElement) if (scrolls(p)) return true;
    return false;
};
const visible = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });

if (document.documentElement.scrollWidth > width) {
    found.push(`the page is ${document.documentElement.scrollWidth} wide, the window ${width}`);
}
main.querySelectorAll("*").forEach((e) => {
    const box = e.getBoundingClientRect();
    if (box.width > 1 && box.right > width + 1 && visible(e) && !contained(e)) found.push(`too wide: ${name(e)}`);
    // what scrolls sideways says so: it has a shadow where it goes on
    const style = getComputedStyle(e);
    if (["auto", "scroll"].includes(style.overflowX) && e.scrollWidth > e.clientWidth + 1
        && visible(e) && !style.backgroundImage.includes("gradient")) found.push(`scrolls without a sign: ${name(e)}`);
    if (["hidden", "clip"].includes(style.overflowX) && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 1
        && visible(e) && e.textContent.trim()) found.push(`cut off: ${name(e)}`);
});

document.querySelectorAll("img").forEach((e) => {
    if (e.getAttribute("role") !== "presentation" && !(e.alt || "").trim()) found.push(`no description: ${e.src}`);
});
main.querySelectorAll("svg").forEach((e) => {
    const hidden = e.closest("[aria-hidden=true]") || !visible(e);
    if (!hidden && !e.querySelector("title") && !e.getAttribute("aria-label")) found.push(`no description: ${name(e)}`);
});

const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
};
const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
const background = (e) => {
    const layers = [];
    for (let p = e; p; p = p.parentElement) layers.push(rgba(getComputedStyle(p).backgroundColor));
    return layers.reduceRight((below, top) => over(top, below), rgba(getComputedStyle(document.documentElement).colorScheme === "dark" ? "black" : "white"));
};
const luminance = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const v = c[i] / 255;
    return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
}, 0);
const seen = new Set();
const texts = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || seen.has(e) || !visible(e) || e.closest("svg, .visually-hidden, .katex-mathml")) continue;
    seen.add(e);
    const style = getComputedStyle(e);
    const below = background(e);
    const text = over(rgba(style.color), below);
    const [light, dark] = [luminance(text), luminance(below)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight, 10) >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`contrast ${ratio.toFixed(2)}: ${name(e)} ${style.color}`);
}
return found;
