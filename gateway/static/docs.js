// A file and not a script in the page: the Content-Security-Policy allows no inline script.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
  // By default the document is sent to a validator on the internet.
  validatorUrl: null,
});
