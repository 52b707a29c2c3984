"""The web page's files: plain modules of the browser, without a build step."""
