// Validate one .glb with the Khronos validator and print its report as JSON: node gltf_validate.mjs FILE
import { readFileSync } from "node:fs";
import validator from "gltf-validator";

const report = await validator.validateBytes(new Uint8Array(readFileSync(process.argv[2])), { maxIssues: 20 });
console.log(JSON.stringify(report));
